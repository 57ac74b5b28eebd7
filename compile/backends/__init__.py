"""What builds a target's libraries, and checks them."""
