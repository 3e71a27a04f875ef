"""What people do with embeddings besides training: inspect, merge, convert, compare and share."""
