"""Speech to dual-codebook tokens: linguistic codes at 16.67 Hz and semantic codes at 25 Hz."""
