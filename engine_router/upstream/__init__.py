"""The client leg: connections to engines, HTTP/1.1 requests and responses over them."""
