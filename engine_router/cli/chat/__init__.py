"""Chats in the terminal: what is asked, how the answer is read and shown, and the commands of a session."""
