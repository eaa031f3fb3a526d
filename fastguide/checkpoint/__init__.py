"""Models on disk: what a folder holds, how it is written and read, and nothing that runs code."""
