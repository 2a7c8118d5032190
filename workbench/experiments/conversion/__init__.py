"""The conversion experiment: small models pretrained, converted head by head, and measured."""
