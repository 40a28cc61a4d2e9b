"""Who carries text messages: the seam, Twilio, and a console for work without an account."""
