"""What two or more methods share unchanged: prompt words, maps, scores, losses."""
