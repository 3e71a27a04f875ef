"""From a folder of photos to a dataset: crops, splits, buckets, flips, captions. Originals are never touched."""
