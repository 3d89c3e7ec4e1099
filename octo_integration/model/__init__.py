"""The vision-language-action model: two vision towers, a bridge, a decoder, an action head."""
