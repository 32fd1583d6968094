"""The divergences of `flowmdp.mdp.divergences`, by their former address."""

from flowmdp.mdp.divergences import DIVERGENCES as DIVERGENCES
from flowmdp.mdp.divergences import KL_STD as KL_STD
from flowmdp.mdp.divergences import Divergence as Divergence
from flowmdp.mdp.divergences import cosine as cosine
from flowmdp.mdp.divergences import direction as direction
from flowmdp.mdp.divergences import gaussian_kl as gaussian_kl
from flowmdp.mdp.divergences import smooth_norm as smooth_norm
from flowmdp.mdp.divergences import squared as squared
