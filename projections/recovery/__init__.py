"""The log, its chain and the read models made again from Kafka's topics, into an empty database."""
