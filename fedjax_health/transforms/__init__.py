"""Client transforms: what happens to one client's updates before they are sent."""
