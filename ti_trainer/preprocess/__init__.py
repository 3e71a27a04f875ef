"""From a folder of photos to a data set: crops, splits, buckets, flips, captions. Originals are never touched."""
