"""Reading pictures, sounds and videos."""
