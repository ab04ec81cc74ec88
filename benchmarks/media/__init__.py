"""Times the loading of media files beside plain loops."""
