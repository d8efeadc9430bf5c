"""The edge agent: learns on a device while the device rests."""
