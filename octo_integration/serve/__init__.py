"""A policy over the network, as openpi's clients and servers speak: `maps-vla serve`, and the other end."""
