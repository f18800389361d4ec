"""MuJoCo descriptions of the robots of this family, built from primitives, and what tasks must know about them."""
