"""The ground: files, their schemas and their errors. No TVM, nothing of models, compiling or running."""
