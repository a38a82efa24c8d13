"""What deliveries may be sent to: URLs, addresses, ports and headers, and connections to checked addresses alone."""
