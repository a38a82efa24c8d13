"""An operator's orders to send deliveries again: what they select, and how far they are."""
