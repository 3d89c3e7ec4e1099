"""The integration: a vision-language-action model fine-tuned with MAPS on robot data."""
