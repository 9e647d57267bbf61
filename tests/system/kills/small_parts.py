"""Trains like recipe/train.py, but uploads in parts what is larger than 200 kB, as the files of real networks are."""

from recipe import train
from recipe.storage import s3

s3.MULTIPART_THRESHOLD = 200_000

if __name__ == "__main__":
    train.main()
