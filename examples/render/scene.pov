// A ring of glass and metal around a golden sphere, over a polished floor.
// One turn of the animation is clock = 0 … 1; it ends where it begins.
#version 3.7;
global_settings { assumed_gamma 1.0 max_trace_level 7 }

#declare Turn = 360 * clock;
#declare Count = 6;

camera {
  location <0, 2.35, -8.6>
  look_at <0, 1.12, 0>
  angle 43
}

// A large soft light, and a faint one from the other side that colours the shadows.
light_source {
  <-6, 9, -5>
  color rgb <1.0, 0.95, 0.86> * 1.15
  area_light <2.4, 0, 0>, <0, 0, 2.4>, 4, 4 adaptive 0 jitter circular orient
}
light_source { <8, 5, -3> color rgb <0.22, 0.30, 0.45> shadowless }

sky_sphere {
  pigment {
    gradient y
    color_map {
      [0.00 rgb <0.95, 0.55, 0.30>]
      [0.10 rgb <0.72, 0.38, 0.38>]
      [0.28 rgb <0.22, 0.19, 0.38>]
      [0.60 rgb <0.05, 0.08, 0.22>]
      [1.00 rgb <0.01, 0.02, 0.08>]
    }
  }
}

plane {
  y, 0
  texture {
    pigment { checker color rgb <0.78, 0.74, 0.68> color rgb <0.035, 0.05, 0.10> scale 0.9 }
    finish { ambient 0.02 diffuse 0.62 specular 0.25 roughness 0.02 reflection { 0.04, 0.5 fresnel } conserve_energy }
  }
  interior { ior 1.5 }
}
fog { distance 60 color rgb <0.80, 0.52, 0.36> fog_type 2 fog_offset 0 fog_alt 0.5 }

#macro Metal(Colour)
  texture {
    pigment { color Colour }
    finish { ambient 0.02 diffuse 0.30 metallic specular 0.9 roughness 0.012 reflection { 0.45, 0.75 metallic } }
  }
#end

#macro Glass(Colour)
  texture {
    pigment { color rgbf <1, 1, 1, 0.97> }
    finish { ambient 0 diffuse 0.02 specular 0.9 roughness 0.003 reflection { 0.03, 0.9 fresnel } conserve_energy }
  }
  interior { ior 1.45 fade_distance 0.9 fade_power 2 fade_color Colour }
#end

// The centre: a golden sphere that breathes, inside two rings that turn against each other.
#declare Breath = 0.06 * sin(2 * pi * clock);
sphere { <0, 1.15, 0>, 0.62 + Breath Metal(rgb <1.00, 0.62, 0.16>) }
torus { 1.08, 0.055 rotate x * 68 rotate y * Turn translate y * 1.15 Metal(rgb <0.80, 0.82, 0.86>) }
torus { 1.30, 0.040 rotate z * 62 rotate y * -Turn translate y * 1.15 Metal(rgb <0.78, 0.45, 0.32>) }

// The ring: glass and metal in turn, rising and sinking one after the other.
#declare N = 0;
#while (N < Count)
  #declare Angle = Turn + N * 360 / Count;
  #declare Lift = 0.62 + 0.22 * sin(2 * pi * (clock + N / Count));
  #declare Place = vrotate(<2.55, Lift, 0>, y * Angle);
  #if (mod(N, 2) = 0)
    #switch (N)
      #case (0) sphere { Place, 0.52 Glass(rgb <0.35, 0.85, 0.95>) } #break
      #case (2) sphere { Place, 0.52 Glass(rgb <0.95, 0.45, 0.55>) } #break
      #else     sphere { Place, 0.52 Glass(rgb <0.55, 0.95, 0.50>) }
    #end
  #else
    sphere { Place, 0.42 Metal(rgb <0.35 + N * 0.11, 0.50 - N * 0.02, 0.92 - N * 0.13>) }
  #end
  #declare N = N + 1;
#end
