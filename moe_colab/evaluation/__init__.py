"""Quality of quantized models: perplexity, comparison, sensitivity, allocation of bits."""
