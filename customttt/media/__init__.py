"""Images and videos in, clips and contact sheets out."""
