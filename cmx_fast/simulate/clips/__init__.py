"""Videos of moving objects of which one sounds, in Kinetics' and VGGSound's layouts."""
