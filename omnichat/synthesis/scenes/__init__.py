"""What is heard around the words: sounds, rooms, lines, and two people talking at once."""
