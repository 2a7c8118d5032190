"""The conversion experiment: pretrain small models, convert them head by head, and measure them."""
