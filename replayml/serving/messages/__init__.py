"""What is sent: values as JSON or typed bytes, events of streams, schemas."""
