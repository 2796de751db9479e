# %% [markdown]
# # Denoise a scan and look at what was removed
# A head phantom with known truth takes the place of your scan: replace `noisy` by `medssl.read("scan.nii.gz")`.

# %%
import numpy as np
import torch

import medssl
from medssl.core.random import stream
from medssl.io.memory import from_array
from medssl.physics.noise import Rician
from medssl.physics.phantom import head

truth = head((96, 96, 32))
noisy = Rician(0.06).sample(truth, stream(0, "notebook"))
image = from_array(noisy.numpy(), np.diag([-2.0, -2.0, 4.0, 1.0]))

# %% [markdown]
# One call. The noise law and its level are found from the scan; nothing else is needed.

# %%
done = medssl.api.denoise(image, noise="rician")
print(done.line)
print("expected gain:", done.qc["predicted"]["gain_db"], "dB")

# %% [markdown]
# Here the truth is known, so the gain can be checked. With your scan there is no truth; the estimate above is what you have.

# %%
brain = truth > 0.1
clean = torch.from_numpy(done.image.data[0])
before = float((noisy - truth)[brain].square().mean())
after = float((clean - truth)[brain].square().mean())
gain = 10 * np.log10(before / after)
print(f"true gain: {gain:.2f} dB")
assert gain > 4

# %% [markdown]
# A good residual looks like noise: no anatomy, no edges. If you see the brain in it, lower `strength`.

# %%
from matplotlib.figure import Figure

figure = Figure(figsize=(9, 3.2), layout="constrained")
middle = image.shape[2] // 2
panels = {
    "before": image.data[0, :, :, middle],
    "after": done.image.data[0, :, :, middle],
    "residual": (image.data - done.image.data)[0, :, :, middle],
}
for place, (title, panel) in enumerate(panels.items(), start=1):
    axes = figure.add_subplot(1, 3, place)
    axes.imshow(panel.T, cmap="gray")
    axes.set_title(title)
    axes.set_axis_off()
figure  # noqa: B018 (shown by the notebook)
