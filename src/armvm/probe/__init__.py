"""What runs inside a virtual machine and says what it sees, and the reading of what it said."""
