"""The working memory."""
