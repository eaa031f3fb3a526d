"""Other libraries' models and pipelines under our guidance."""
