"""The demo model that is shipped, and how it was made."""
