"""Small machines elsewhere: how to get there, what runs there, and what is expected of them."""
