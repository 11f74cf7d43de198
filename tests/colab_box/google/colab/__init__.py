"""What moe_colab uses of Google Colab's own package, for the box test."""
