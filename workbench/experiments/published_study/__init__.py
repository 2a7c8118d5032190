"""The conversion of published models: which heads must keep the whole context, without training and after some."""
