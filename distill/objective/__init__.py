"""What training minimises: named losses, weighted and summed in one place."""
