"""The demo: real people's recordings, one device each, and what four ways of training make of them."""
