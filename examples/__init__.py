"""Small programs that use gearflow. Each starts its own server, prints the same every run, and ends."""
