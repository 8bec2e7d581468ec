"""How long a request would wait at each endpoint, learnt from what the endpoints show of themselves."""
