"""The kinds of files by their names' endings, in small letters; capitals count as small ones."""

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
#: Sounds that FFmpeg decodes; libsndfile reads the others.
BY_FFMPEG = (".m4a", ".aac")
SOUNDS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", *BY_FFMPEG)
VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v")
