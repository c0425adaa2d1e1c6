"""What is learned on: UNet with motion modules, VAE, CLIP and its tokenizer."""
