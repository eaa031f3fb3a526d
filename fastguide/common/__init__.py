"""What every room may use and what knows none of them: options, hashes, files, images, the log."""
