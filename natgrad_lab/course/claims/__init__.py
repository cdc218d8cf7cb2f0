"""The numbers that lessons state, one file a lesson: every public function without arguments measures one of them."""
