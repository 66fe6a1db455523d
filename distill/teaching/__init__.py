"""Live and cached teachers behind one call: teacher(clips) -> TeacherOutput."""
