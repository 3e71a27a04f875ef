"""Forge and its forks that keep its `backend` package: ersatzForge and Forge Neo. What A1111 has too is in hosts/webui."""
