"""What says in words what is in a picture. Each file here is one captioner; adding one is adding a file."""
