"""ipywidgets: the chat, the Explorer, and panels for routing, cache, speculation, bits."""
