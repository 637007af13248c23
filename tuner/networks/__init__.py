"""The networks of a sweep before its search: chosen, checked, pretrained, probed, priced."""
