"""The services of Parley: four small services with identical insides, and the runtime that they share."""
